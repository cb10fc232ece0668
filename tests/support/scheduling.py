"""Which tests share a process of pytest-xdist."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

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

    def remove_node(self, node: WorkerController) -> str | None:
        """The test during which `node` died, which isn't run again.

        pytest-xdist 3.8 runs it again in one process after another. It also gives them files that have no test left,
        for which they wait for ever.
        """
        left = {file: tests for file, tests in self.assigned_work[node].items() if not all(tests.values())}
        test = next((name for tests in left.values() for name, done in tests.items() if not done), None)
        if test is not None:
            left[group_of(test)][test] = True
        self.assigned_work[node] = {file: tests for file, tests in left.items() if not all(tests.values())}
        super().remove_node(node)
        return test

    def _reschedule(self, node: WorkerController) -> None:
        """Gives `node` more tests, once it has collected them.

        pytest-xdist 3.8 asks all nodes as soon as one has collected. Where two have died, that ends the whole run: the
        second to be replaced is known before its tests are.
        """
        if node in self.registered_collections:
            super()._reschedule(node)
