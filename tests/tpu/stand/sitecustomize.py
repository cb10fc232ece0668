"""Lets torch_tpu run on XLA's CPU device, in every process that has this folder and torch_tpu on PYTHONPATH.

torch_tpu registers its device if it finds a TPU on the PCI bus, so it is told of one. The plugin library is a build of
XLA's CPU device that takes none of the options that torch_tpu gives a TPU, so they are dropped.

STAND_CARD, such as Blackhole, makes the machine one with a Tenstorrent card of that kind, and without a TPU. A
program's options are read as the vendor's plugin for the card reads them: those that it would accept are taken out and
written to the file STAND_LOG, if there is one, and XLA refuses the rest by name.
"""

import ctypes
import json
import os
import re
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

HARDWARE = "torch_tpu._internal.utils.hardware"
STACKS = "isotrain.backends.tt.stacks"
PLUGIN = find_spec("lammps_jax_pjrt_cpu")
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))
# Fields before the functions of a PJRT_Api: its size, its extensions and its version.
FIELDS = 5
CLIENT_CREATE, CLIENT_COMPILE, DEVICE_KIND, COMPILE = FIELDS + 10, FIELDS + 20, FIELDS + 26, FIELDS + 89
# In the arguments of PJRT_Client_Create, after their size and extensions: the options and their number.
OPTIONS, OPTIONS_COUNT = 2, 3
# In those of PJRT_Client_Compile (eager operators) and PJRT_Compile (torch.compile), after the client or the topology
# and the program: a CompileOptionsProto and its size.
PROTO, PROTO_SIZE = 4, 5
# In those of PJRT_DeviceDescription_Kind, after the device: the text and its length.
KIND, KIND_LENGTH = 3, 4
# A CompileOptionsProto's map from names to values of options, and the only kind of value that torch_tpu gives.
ENV_OPTION_OVERRIDES, STRING = 7, 1
# What the vendor's plugin accepts (tt-xla: compile_options.cc and compile_options_parser.cc).
BOOLEAN = "(?i:true|false|1|0|yes|no|on|off)"
CARD_OPTIONS = {
    "optimization_level": "[012]",
    "math_fidelity": "lofi|hifi2|hifi3|hifi4|ttnn_default",
    "fp32_dest_acc_en": BOOLEAN,
    "enable_const_eval": BOOLEAN,
    "experimental_weight_dtype": "|bfp_bf8|bfp_bf4",
}
# What the library calls and reads, which must live as long as the process.
KEPT = []


class Changed:
    """Finds the modules that look for a device, and changes them once they are loaded."""

    def find_spec(self, name, path, target=None):
        change = {HARDWARE: one_tpu, STACKS: one_card}.get(name)
        if change is None:
            return None
        spec = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec


def one_tpu(module):
    if "STAND_CARD" not in os.environ:
        module.get_tpu_device_count = lambda: 1
    library = Path(os.environ.get("TPU_LIBRARY_PATH", ""))
    if library.name == LIBRARY.name and library.is_file():
        change_functions(str(library))


def one_card(module):
    if "STAND_CARD" in os.environ:
        module.CARD_FOLDER = Path(__file__).with_name("tenstorrent")


def change_functions(library):
    """Has the plugin's clients created without options, and its programs' options read as a card's plugin does."""
    plugin = ctypes.CDLL(library)
    plugin.GetPjrtApi.restype = ctypes.POINTER(ctypes.c_void_p)
    api = plugin.GetPjrtApi()
    KEPT.append(plugin)

    def replace(slot, change):
        own = CALLBACK(api[slot])
        changed = CALLBACK(lambda arguments: change(own, arguments))
        KEPT.append(changed)
        api[slot] = ctypes.cast(changed, ctypes.c_void_p)

    replace(CLIENT_CREATE, create_without_options)
    replace(CLIENT_COMPILE, compile_for_a_card)
    replace(COMPILE, compile_for_a_card)
    if "STAND_CARD" in os.environ:
        replace(DEVICE_KIND, name_the_card)


def create_without_options(own, arguments):
    arguments[OPTIONS] = arguments[OPTIONS_COUNT] = None
    return own(arguments)


def name_the_card(own, arguments):
    error = own(arguments)
    kind = os.environ["STAND_CARD"].encode()
    KEPT.append(ctypes.create_string_buffer(kind))
    arguments[KIND], arguments[KIND_LENGTH] = ctypes.addressof(KEPT[-1]), len(kind)
    return error


def compile_for_a_card(own, arguments):
    proto, told = without_card_options(ctypes.string_at(arguments[PROTO], arguments[PROTO_SIZE]))
    given = arguments[PROTO], arguments[PROTO_SIZE]
    left = ctypes.create_string_buffer(proto, len(proto) or 1)
    arguments[PROTO], arguments[PROTO_SIZE] = ctypes.addressof(left), len(proto)
    error = own(arguments)
    arguments[PROTO], arguments[PROTO_SIZE] = given
    if "STAND_LOG" in os.environ:
        with Path(os.environ["STAND_LOG"]).open("a") as file:
            file.write(json.dumps(told) + "\n")
    return error


def without_card_options(message):
    """A CompileOptionsProto without the options that a card's plugin accepts, and those by their names."""
    left, told = b"", {}
    for number, value, encoded in fields(message):
        if number == ENV_OPTION_OVERRIDES:
            entry = {number: value for number, value, _ in fields(value)}
            name, override = entry[1].decode(), {number: value for number, value, _ in fields(entry[2])}
            text = override[STRING].decode() if STRING in override else None
            if text is not None and re.fullmatch(CARD_OPTIONS.get(name, "(?!)"), text):
                told[name] = text
                continue
        left += encoded
    return left, told


def fields(message):
    """The fields of a protobuf message: number, value (bytes, or a number), and the field as it is encoded."""
    at = 0
    while at < len(message):
        start = at
        tag, at = varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(message, at)
        else:
            size, at = varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = message[at : at + size], at + size
        yield tag >> 3, value, message[start:at]


def varint(message, at):
    value = shift = 0
    while True:
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 128:
            return value, at


if PLUGIN is not None:
    LIBRARY = Path(PLUGIN.origin).with_name("pjrt_c_api_cpu_plugin.so")
    os.environ.setdefault("TPU_LIBRARY_PATH", str(LIBRARY))
    sys.meta_path.insert(0, Changed())
