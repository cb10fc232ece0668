"""Which tests share a process of pytest-xdist."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# Several processes each, with ports and time limits between them: not two such tests at once, even from two files.
ONE_AT_A_TIME = "distributed"


def group_of(test: str) -> str:
    """The file of a test's name, which is also that of its fixtures, or the folder whose tests run one at a time."""
    file = test.partition("::")[0]
    folder = file.rpartition("/")[0]
    return folder if folder.rpartition("/")[2] == ONE_AT_A_TIME else file


class ByFile(LoadScopeScheduling):
    """Sends a group as a whole to one process.

    ``--dist loadgroup`` of pytest-xdist 3.8 says the group in a test's name, where pytest 9.2 no longer looks for it.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
