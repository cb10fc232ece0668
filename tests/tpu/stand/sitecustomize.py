"""Lets torch_tpu run on XLA's CPU device, in every process that has this folder and torch_tpu on PYTHONPATH.

torch_tpu registers its device if it finds a TPU on the PCI bus, so it is told of one. The plugin library is a build of
XLA's CPU device that takes none of the options that torch_tpu gives a TPU, so they are dropped.
"""

import ctypes
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

HARDWARE = "torch_tpu._internal.utils.hardware"
PLUGIN = find_spec("lammps_jax_pjrt_cpu")
POINTER = ctypes.sizeof(ctypes.c_void_p)
# Fields before the functions of a PJRT_Api: its size, its extensions and its version.
FIELDS = 5
CLIENT_CREATE = FIELDS + 10
# In the arguments of PJRT_Client_Create, after their size and extensions: the options and their number.
OPTIONS, OPTIONS_COUNT = 2, 3


class OneTpu:
    """Finds torch_tpu's module that scans the PCI bus, and changes it once it is loaded."""

    def find_spec(self, name, path, target=None):
        if name != HARDWARE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.get_tpu_device_count = lambda: 1
            library = Path(os.environ.get("TPU_LIBRARY_PATH", ""))
            if library.name == LIBRARY.name and library.is_file():
                drop_options(str(library))

        spec.loader.exec_module = exec_module
        return spec


def drop_options(library):
    """Has the plugin's clients created without options."""
    plugin = ctypes.CDLL(library)
    plugin.GetPjrtApi.restype = ctypes.POINTER(ctypes.c_void_p)
    api = plugin.GetPjrtApi()
    signature = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))
    create = signature(api[CLIENT_CREATE])

    @signature
    def create_without_options(arguments):
        arguments[OPTIONS] = arguments[OPTIONS_COUNT] = None
        return create(arguments)

    # Held for as long as the process lives.
    OneTpu.plugin = plugin, create, create_without_options
    api[CLIENT_CREATE] = ctypes.cast(create_without_options, ctypes.c_void_p)


if PLUGIN is not None:
    LIBRARY = Path(PLUGIN.origin).with_name("pjrt_c_api_cpu_plugin.so")
    os.environ.setdefault("TPU_LIBRARY_PATH", str(LIBRARY))
    sys.meta_path.insert(0, OneTpu())
