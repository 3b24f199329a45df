"""Hostile pickles and torch files, made by code: each would run, reach out, or take all memory where it is believed."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch

Corpus = dict[str, bytes]

_CALLS = """
os.system posix.system nt.system os.popen os.execv os.kill os._exit subprocess.Popen subprocess.check_output pty.spawn
builtins.eval builtins.exec builtins.getattr builtins.setattr builtins.__import__ builtins.open builtins.compile
builtins.globals builtins.input builtins.breakpoint __builtin__.eval __builtin__.file builtins.apply builtins.type
builtins.bytearray.fromhex builtins.object.__subclasses__ __main__.main importlib.import_module runpy.run_path
runpy._run_code code.InteractiveInterpreter socket.socket socket.create_connection shutil.rmtree pathlib.Path.touch
pathlib.PosixPath webbrowser.open pickle.loads _pickle.loads pickle.Unpickler marshal.loads types.CodeType
types.FunctionType functools.partial functools.reduce operator.attrgetter operator.methodcaller bdb.Bdb.run
timeit.timeit cProfile.run doctest.debug_script idlelib.pyshell.ModifiedInterpreter ctypes.CDLL sys.exit sys.settrace
sys.modules.__getitem__ signal.raise_signal threading.Thread multiprocessing.Process asyncio.run
logging.config.dictConfig io.open _io.FileIO tempfile.mkdtemp urllib.request.urlopen codecs.decode _codecs.decode
copyreg.__newobj__ copyreg.add_extension copy_reg._reconstructor numpy.load numpy.fromfile numpy.memmap numpy.save
numpy.core.numeric.load numpy.f2py.compile numpy.testing._private.utils.runstring numpy.core._internal._reconstruct
numpy.core.records.recarray numpy.ma.core._mareconstruct numpy.dtypes.StringDType PIL.Image.open PIL.Image.Image.save
PIL.ImageMath.unsafe_eval PIL.EpsImagePlugin.Ghostscript torch.load torch.save torch.hub.load
torch.serialization.load torch.jit.load torch.ops.load_library torch.classes.load_library torch.tensor
torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v3 torch._utils._rebuild_qtensor
torch._utils._rebuild_sparse_tensor torch._utils._rebuild_parameter_with_state
torch._utils._rebuild_wrapper_subclass torch._utils._rebuild_device_tensor_from_numpy
torch._tensor._rebuild_from_type_v2 torch.nn.parameter.Parameter torch.nn.Module torch.storage.UntypedStorage
torch.storage._share_filename_cpu torch.multiprocessing.reductions.rebuild_storage_fd torch.FloatStorage._new_shared
torch.FloatStorage.from_file torch.utils.collect_env.run torch.package.PackageImporter
torch.fx.graph_module._exec_with_source
dill._dill._create_code cloudpickle.cloudpickle.subimport joblib.numpy_pickle.NumpyArrayWrapper
collections.OrderedDict.fromkeys collections.namedtuple mithridate.core.schema.resolve antigravity.fly
"""
NAMES = _CALLS.split()
"""What pickles name to run code, or to reach files, processes and networks; some need what is not installed."""


def text(value: str) -> bytes:
    """Instructions that put text on the stack."""
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def called(module: str, name: str, argument: str) -> dict[str, bytes]:
    """Pickles that call a function with one argument, in each way that pickles have."""
    named = f"{module}\n{name}\n".encode("utf-8", "surrogatepass")
    stacked = text(module) + text(name) + b"\x93"
    said = text(argument)
    return {
        "reduce": b"\x80\x02c" + named + b"(" + said + b"tR.",
        "stack global": b"\x80\x04" + stacked + said + b"\x85R.",
        "inst": b"(" + b"V" + argument.encode() + b"\ni" + named + b".",
        "obj": b"\x80\x02(c" + named + said + b"o.",
        "newobj": b"\x80\x02c" + named + said + b"\x85\x81.",
        "newobj ex": b"\x80\x04c" + named + said + b"\x85}\x92.",
        "protocol 0": b"c" + named + b"(V" + argument.encode() + b"\ntR.",
    }


def in_contents(call: bytes) -> Corpus:
    """The same call, deep inside what readers expect."""
    call = call.rstrip(b".").split(b"\x80\x02")[-1].split(b"\x80\x04")[-1]
    return {
        "in a list": b"\x80\x04](" + call + b"e.",
        "as an image": b"\x80\x04](" + call + b"K\x01\x86e.",
        "as a key": b"\x80\x04}" + call + b"K\x01s.",
        "as a value": b"\x80\x04}" + text("xtrain") + call + b"s.",
        "thrown away": b"\x80\x04" + call + b"0K\x01.",
        "as the bytes of an array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"C\x01b\x87R(K\x01K\x01\x85cnumpy\ndtype\n" + text("u1") + b"\x85R\x89" + call + b"tb.",
        "as the type of an array": b"\x80\x02cnumpy\nndarray\nK\x01\x85" + call + b"C\x01a\x87R.",
        "as the state of an image": b"\x80\x02cPIL.Image\nImage\n)\x81" + call + b"b.",
        "as the picture": b"\x80\x02cPIL.Image\nImage\n)\x81](}" + text("L") + b"K\x01K\x01\x86N" + call + b"eb.",
        "as bytes": b"\x80\x02cbuiltins\nbytes\n" + call + b"\x85R.",
        "after the end": b"\x80\x02].\x80\x02" + call + b".",
    }


def pickles(canary: Path) -> Corpus:
    """Pickles that touch the canary, or would, if they were run."""
    touch = f"touch {canary}"
    found: Corpus = {}
    for dotted in NAMES:
        module, _, name = dotted.rpartition(".")
        found[dotted] = called(module, name, touch)["reduce"]
    for way, content in called("os", "system", touch).items():
        found[f"os.system by {way}"] = content
    found |= {f"os.system {place}": one for place, one in in_contents(called("os", "system", touch)["reduce"]).items()}
    for name in (
        "system",
        "syste\u217f",
        "\uff53ystem",
        "system\0",
        "system\u200b",
        "sys\u0074em ",
        "path.os.system",
        "\ud800",
    ):
        for module in ("os", "\uff4fs", "os\0", "os.", ".os", "os\u202e", "OS", "os\n"):
            found[f"os.system spelled {module!a} {name!a}"] = (
                b"\x80\x04" + text(module) + text(name) + b"\x93" + (text(touch) + b"\x85R.")
            )
    system = b"cos\nsystem\n"
    getter = b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(" + text("os") + b"tR" + text("system") + b"tR"
    found |= {
        "a chain of calls": b"\x80\x02" + getter + b"(" + text(touch) + b"tR.",
        "setstate": b"\x80\x02cPIL.Image\nImage\n)\x81}" + text("__setstate__") + system + b"sb" + text(touch) + b"b.",
        "setstate of slots": b"\x80\x02cPIL.Image\nImage\n)\x81N}" + text("__setstate__") + system + b"s\x86b.",
        "reduce of a dictionary": b"\x80\x02ccollections\nOrderedDict\n)R}" + text("__reduce__") + system + b"sb.",
        "extension 1": b"\x80\x02\x82\x01.",
        "extension 2": b"\x80\x02\x83\x01\x00.",
        "extension 4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "persistent id": b"Pos.system\n.",
        "persistent name": b"\x80\x02" + system + b"Q.",
        "persistent storage": b"\x80\x02(" + text("storage") + system + text("0") + text("cpu") + b"K\x01tQ.",
        "buffer from outside": b"\x80\x05\x97.",
        "state of a list": b"\x80\x02]" + system + b"b.",
        "python itself": pickle.dumps(_Touch(canary)),
        "python itself, in contents": pickle.dumps([(_Touch(canary), 1), {"xtrain": _Touch(canary)}]),
        "array of objects": pickle.dumps(np.array([_Touch(canary)], object)),
        "array of a class": pickle.dumps(np.arange(3).view(_Array)),
    }
    return found | pickle_bombs()


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


class _Array(np.ndarray):
    pass


def pickle_floods() -> Corpus:
    """Pickles of millions of instructions."""
    many = 10**6
    return {
        "dictionaries": b"\x80\x04](" + b"}" * (many // 3) + b"e.",
        "kept parts": b"\x80\x04N" + b"\x94" * many + b".",
        "instructions": b"\x80\x04]" + b"Na" * (2 * many) + b".",
        "names": b"\x80\x04](" + b"cnumpy\ndtype\n" * (many // 4) + b"e.",
        "images": b"\x80\x04](cPIL.Image\nImage\n\x94" + b"h\0)\x81" * (many // 4) + b"e.",
        "nested lists": b"\x80\x04" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        "nested tuples": b"\x80\x04)" + b"\x85" * 10**5 + b".",
        "number of many digits": b"\x80\x02L" + b"9" * many + b"L\n.",
    }


def pickle_bombs() -> Corpus:
    """Small pickles that ask for much: memory, depth, or no end."""
    laughs: object = "ha"
    for _ in range(20):
        laughs = [laughs] * 10
    return {
        "billion laughs": pickle.dumps(laughs),
        "marks": b"\x80\x04" + b"(" * 10**5 + b".",
        "nested dictionaries": b"\x80\x04" + b"}K\x01" * 10**4 + b"}" + b"s" * 10**4 + b".",
        "a list of itself": b"\x80\x04]\x94h\x00a.",
        "a dictionary of itself": b"\x80\x04}\x94K\x01h\x00s.",
        "a tuple of itself": b"\x80\x04]\x94h\x00\x85\x940h\x00h\x01a.",
        "a frame of 8 EiB": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
        "bytes of 8 EiB": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
        "bytes of 4 GiB": b"\x80\x04B\xff\xff\xff\xff.",
        "text of 4 GiB": b"\x80\x04X\xff\xff\xff\xff.",
        "bytearray of 16 EiB": b"\x80\x05\x96" + b"\xff" * 8 + b".",
        "number of 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "number of -1 bytes": b"\x80\x02\x8b\xff\xff\xff\xff.",
        "kept under 4 billion": b"\x80\x02Nr\xff\xff\xff\xff.",
        "kept under a huge number": b"Np" + b"9" * 4000 + b"\n.",
        "an array of 16 EiB": b"\x80\x02cnumpy\nndarray\n(\x8a\x08"
        + b"\xff" * 7
        + b"\x7ftcnumpy\ndtype\n"
        + text("u1")
        + b"\x85RC\x00\x87R.",
        "an image of 16 EiB": b"\x80\x02cPIL.Image\nImage\n)\x81](}"
        + text("RGB")
        + b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86NC\x00eb.",
        "an image of 4 GiB": b"\x80\x02cPIL.Image\nImage\n)\x81](}" + text("L") + b"M\xff\xffM\xff\xff\x86NC\x00eb.",
        "a type of 4 GiB": b"\x80\x02cnumpy\nndarray\n(K\x01tcnumpy\ndtype\n"
        + text("V4294967295")
        + b"\x85RC\x00\x87R.",
        "nothing": b"",
        "an end": b".",
        "another protocol": b"\x80\xff.",
    }


# --- torch files -----------------------------------------------------------------------------------------------------


def saved(value: object, **how: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def zipped(parts: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive, of names that zipfile would not write too."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as packed:
        for name, content in parts:
            entry = zipfile.ZipInfo("x")
            entry.filename, entry.compress_type = name, how
            packed.writestr(entry, content)
    return file.getvalue()


def _stored(key: str, count: int) -> bytes:
    said = text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    return b"(" + said + b"\x8a\x08" + struct.pack("<q", count) + b"tQ"


def _tensor(storage: bytes, size: bytes, stride: bytes, offset: bytes = b"K\x00") -> bytes:
    end = b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + end + b"."


def torch_files(canary: Path) -> Corpus:
    """Torch files that touch the canary, or would, and bombs."""
    touch = f"touch {canary}"
    run = called("os", "system", touch)["reduce"]
    version = ("archive/version", b"3\n")
    found: Corpus = {
        f"zip of {name}": zipped([("archive/data.pkl", one), version]) for name, one in pickles(canary).items()
    }
    four = struct.pack("<4f", 1, 2, 3, 4)
    line = (b"K\x04\x85", b"K\x01\x85")
    programs = {
        "a storage that is not there": _tensor(_stored("9", 4), *line),
        "a storage elsewhere": _tensor(_stored("../../../etc/passwd", 4), *line),
        "a storage of 4 TiB": _tensor(_stored("0", 2**40), *line),
        "a storage of -1 values": _tensor(_stored("0", -1), *line),
        "a view of 16 EiB": _tensor(_stored("0", 4), b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"K\0K\0\x86"),
        "a view before the values": _tensor(_stored("0", 4), b"K\x01\x85", b"K\x01\x85", b"J\xff\xff\xff\xff"),
        "a view behind the values": _tensor(_stored("0", 4), b"K\x01\x85", b"K\x01\x85", b"K\x04"),
        "a negative step": _tensor(_stored("0", 4), b"K\x04\x85", b"J\xff\xff\xff\xff\x85"),
        "storage of text": _tensor(text("0"), *line),
        "a module of it": b"\x80\x02(" + text("module") + b"cos\nsystem\n" + text("os.py") + text(touch) + b"tQ.",
    }
    for name, program in programs.items():
        found[name] = zipped([("archive/data.pkl", program), ("archive/data/0", four), version])
    data = ("archive/data.pkl", b"\x80\x02N.")
    old = saved([torch.ones(2)], _use_new_zipfile_serialization=False)
    start = old.index(b"\x80\x02}")
    found |= {
        "path traversal": zipped([data, version, ("archive/../../../../tmp/x", b"x")]),
        "absolute name": zipped([data, version, ("/etc/passwd", b"x")]),
        "name of Windows": zipped([data, version, ("archive\\..\\x", b"x")]),
        "name with NUL": zipped([data, version, ("archive/a\0b", b"x")]),
        "two parts of one name": zipped([data, ("archive/data.pk2", run), version]).replace(b"data.pk2", b"data.pkl"),
        "two homes": zipped([data, ("b/data.pkl", run), version]),
        "no data": zipped([version]),
        "packed": zipped([data, version], zipfile.ZIP_DEFLATED),
        "a bomb, packed": zipped([data, version, ("archive/data/0", bytes(3 * 10**8))], zipfile.ZIP_DEFLATED),
        "very many parts": zipped([data, version, *((f"a{i}", b"") for i in range(20_000))]),
        "parts that overlap": _overlapping(),
        "sizes that are not so": zipped([data, version]).replace(b"\4\0\0\0" * 2, b"\0\0\0\x7f" * 2),
        "a list of parts that is elsewhere": zipped([data, version])[:-6] + b"\xff\xff\xff\x7f\0\0",
        "half of it": saved([torch.ones(9)])[:-400],
        "old, of another program": old[:start] + run,
        "old, with a call": old[:start] + old[start : old.index(b"\x80\x02]", start)] + run,
        "old, of the other byte order": old.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        "old, of 8 EiB": old[:-16] + b"\xff" * 7 + b"\x7f" + old[-8:],
        "old, of -1 values": old[:-16] + b"\xff" * 8 + old[-8:],
        "old, cut off": old[:-3],
        "tar, of torch 0.1": b"storages" + bytes(504),
    }
    return found


def _overlapping() -> bytes:
    """A thousand parts, all of which are the same 100 kB."""
    content = bytes(10**5)
    made = zipped([("archive/data.pkl", b"\x80\x02N."), ("archive/data/0", content)])
    end = made.rindex(b"PK\x05\x06")
    (size, offset) = struct.unpack("<II", made[end + 12 : end + 20])
    last = made[made.rindex(b"PK\x01\x02") : end]
    names = [last.replace(b"data/0", f"dat{i:03}".encode()) for i in range(1000)]
    directory = made[offset : offset + size] + b"".join(names)
    count = len(names) + 2
    return (
        made[:offset]
        + directory
        + b"PK\x05\x06\0\0\0\0"
        + struct.pack("<HHIIH", count, count, len(directory), offset, 0)
    )
