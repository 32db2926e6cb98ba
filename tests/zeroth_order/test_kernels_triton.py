"""The CUDA kernels have the reference's bits: on a CUDA device where there is one, and through Triton's interpreter on the CPU.

The interpreter has to be chosen before triton is imported: `test_through_the_interpreter` runs this file in a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed (CUDA builds of torch bring it)")

import triton.language as tl  # noqa: E402

import dpzero.zeroth_order as package  # noqa: E402
from dpzero.studies.doctor import same_bits  # noqa: E402
from dpzero.zeroth_order import dispatch, kernels_torch, kernels_triton, launch_triton  # noqa: E402
from dpzero.zeroth_order.directions import LAWS, Move, make_law  # noqa: E402
from dpzero.zeroth_order.kernels_torch import table  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="no CUDA device")
needs_device = pytest.mark.skipif(
    DEVICE.type != "cuda" and not INTERPRETED,
    reason="no CUDA device; test_through_the_interpreter runs it without one",
)

KEY = (0xF1234567, 0x1BCDEF01)
NUMBER = 0xFFFFFFF0  # of a tensor: a word as good as any
MOVES = table([Move(3, 0, (0.1, -1.25)), Move(2**32 - 1, 2, (1e-3, 7.0))])
KINDS, DTYPES = ("normals", "signs"), (torch.float32, torch.float64)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_through_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        __file__,
    ]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= 40, run.stdout


def random(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype).to(DEVICE)


def moved(kind: str, x: torch.Tensor, number: int, first: int = 0) -> torch.Tensor:
    """x + scales * z by the reference, in plain torch on the CPU."""
    x = x.detach().cpu().clone()
    kernels_torch.add_(kind, x.view(-1), first, KEY, number, MOVES)
    return x


def assert_same_bits(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[mine.element_size()]
    assert mine.dtype == theirs.dtype and torch.equal(mine.cpu().view(kind), theirs.cpu().view(kind))


@needs_device
@pytest.mark.parametrize("law", LAWS)
def test_doctor_finds_the_plain_bits_and_names_a_wrong_one(law, monkeypatch):
    monkeypatch.setattr(dispatch, "triton_kernels", lambda device: launch_triton)
    monkeypatch.setattr(same_bits, "SHAPES", ((1,), (64,), (65, 33)))
    elements, difference = same_bits._directions(law, torch.float32, DEVICE)
    assert elements == 2 * (1 + 64 + 65 * 33) and not difference
    monkeypatch.setattr(same_bits, "SCALES", (1e-3,))
    add = launch_triton.add

    def wrong(kind, numbered, key, moves):
        add(kind, numbered, key, moves)
        largest = max((x for _, x in numbered), key=torch.numel).view(-1)
        largest[:1] *= 1.5

    monkeypatch.setattr(launch_triton, "add", wrong)
    assert ", element 0: " in same_bits._directions(law, torch.float32, DEVICE)[1]


# Numbers -------------------------------------------------------------------------------------------------------------------


@triton.jit
def pairs(x0, x1, z0, z1, n: tl.constexpr):
    i = tl.arange(0, n)
    a, b = kernels_triton._pair(tl.load(x0 + i).to(tl.uint32), tl.load(x1 + i).to(tl.uint32))
    tl.store(z0 + i, a)
    tl.store(z1 + i, b)


@needs_device
def test_extreme_words_give_the_reference_s_normals():
    """The smallest and the largest radius (0, with its sign), every eighth of the circle and its borders."""
    ends = [0, 1, 2, 3, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1, 0x5A827999, 0xB504F332, 0xB504F334]
    words = torch.tensor(ends + [2**k for k in range(2, 31)] + [3 * 2**k for k in range(23)])
    x0, x1 = (x.flatten().to(DEVICE) for x in torch.meshgrid(words, words, indexing="ij"))
    z0, z1 = torch.zeros(2, 4096, device=DEVICE)
    pairs[(1,)](x0, x1, z0, z1, 4096, **launch_triton.OPTIONS)
    for mine, theirs in zip((z0, z1), kernels_torch.normals(x0.cpu(), x1.cpu()), strict=True):
        assert_same_bits(mine, theirs)


# Weights -------------------------------------------------------------------------------------------------------------------


@needs_device
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_many_tensors_and_moves_in_one_pass(kind, dtype, offset):
    """Of any size and alignment; what lies before and behind a tensor stays as it was."""
    storage = random(9000, dtype=dtype)
    expected, tensors, begin = storage.clone(), [], offset
    for j, size in enumerate([1, 16, 63, 2048, 2049, 4096]):
        tensors.append((NUMBER + j, storage[begin : begin + size]))
        expected[begin : begin + size] = moved(kind, storage[begin : begin + size], NUMBER + j)
        begin += size + 32 - size % 16
    launch_triton.add(kind, tensors, KEY, MOVES)
    assert_same_bits(storage, expected)


@needs_device
def test_a_tensor_that_is_not_contiguous_is_refused():
    with pytest.raises(ValueError, match=r"tensor 5 of shape \(3, 2\) is not contiguous"):
        launch_triton.add("normals", [(5, random(2, 3).t())], KEY, MOVES)


@needs_device
@pytest.mark.parametrize("kind", KINDS)
def test_the_division_into_blocks_is_kept_for_the_last_lists_of_tensors(kind):
    """Kept by where the tensors lie: one that comes to lie where another was is not taken for it."""
    launch_triton._plan.cache_clear()
    storage = random(4096)
    for size in [*range(100, 110), 100, 2100]:
        expected = moved(kind, storage[:size], NUMBER)
        launch_triton.add(kind, [(NUMBER, storage[:size])], KEY, MOVES)
        assert_same_bits(storage[:size], expected)
    assert launch_triton._plan.cache_info().currsize == 8


@needs_device
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [0, 1, 2047, 2**33 + 7])
def test_elements_from_anywhere_in_a_tensor(kind, first):
    x = random(2500)
    expected = moved(kind, x, NUMBER, first)
    launch_triton.move(kind, x, NUMBER, KEY, MOVES, first=first)
    assert_same_bits(x, expected)


@needs_device
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 50, 768, 2100])
def test_rows(kind, dtype, length):
    """Repeated ones, and ones beyond the first 2^32 elements."""
    numbers = [3, 0, 3, 2**33 // length, 7]
    x = random(len(numbers), length, dtype=dtype)
    expected = torch.stack([moved(kind, row, NUMBER, n * length) for row, n in zip(x, numbers, strict=True)])
    rows = torch.tensor(numbers, device=DEVICE)
    launch_triton.move(kind, x, NUMBER, KEY, MOVES, rows=rows)
    assert_same_bits(x, expected)


@needs_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rank", "shape"), [(1, (5, 7)), (1, (33, 128)), (3, (70, 261))])
def test_outer_products(dtype, rank, shape, monkeypatch):
    monkeypatch.setattr(dispatch, "kernels_numba", None)  # plain torch
    u, v = random(2, rank, shape[0]), random(2, rank, shape[1])
    matrix = random(*shape, dtype=dtype)
    expected = matrix.cpu().clone()
    scales = MOVES[:, 2:].copy()
    dispatch.run(dispatch.add_outer_pieces([(expected, u.cpu(), v.cpu())], scales))
    launch_triton.add_outer(matrix, u, v, scales)
    assert_same_bits(matrix, expected)


@needs_device
@pytest.mark.parametrize("name", LAWS)
def test_every_law_takes_these_kernels_and_has_the_cpu_s_bits(name, monkeypatch):
    shapes = [(70, 33), (33,), (0,), (4, 3, 5)]
    steps = [Move(3, 0, (0.1, -1.25)), Move(4, 2, (1e-3, 7.0))]
    here, there = ([random(*shape).to(where) for shape in shapes] for where in ("cpu", DEVICE))
    expected = make_law(name, 5, 2).fit(here)
    dispatch.run(expected.pieces(enumerate(here), steps))
    copy = expected.perturbed_copy(here[0], 0, steps[0])
    if INTERPRETED:
        monkeypatch.setattr(dispatch, "triton_kernels", lambda device: launch_triton)
        monkeypatch.setattr(dispatch, "kernels_numba", None)
    law = make_law(name, 5, 2).fit(there)
    dispatch.run(law.pieces(enumerate(there), steps))
    for mine, theirs in zip(there, here, strict=True):
        assert_same_bits(mine, theirs)
    assert_same_bits(law.perturbed_copy(there[0], 0, steps[0]), copy)
    if name != "low_rank":  # whose rows come from a matrix product of the device's library
        rows, out = torch.tensor([3, 69, 3], device=DEVICE), there[0][[3, 69, 3]]
        law.add_rows_(out, rows, 0, shapes[0], steps[0])
        assert_same_bits(out, copy[[3, 69, 3]])


# A CUDA device -------------------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("name", LAWS)
def test_a_million_elements_have_the_cpu_s_bits(name):
    here = [torch.zeros(1000, 1000), torch.zeros(10**6 + 3)]
    there = [x.to(DEVICE) for x in here]
    for tensors in (here, there):
        make_law(name, 7).add_(tensors, step=11, scale=0.37)
    for mine, theirs in zip(there, here, strict=True):
        assert_same_bits(mine, theirs)


# Without one ---------------------------------------------------------------------------------------------------------------


def compiled_for_h100(kernel, types: dict[str, str], constants: dict) -> str:
    """PTX: the compiler needs no device."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = [name for name, kind in types.items() if kind.startswith("*")]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options=launch_triton.OPTIONS).asm["ptx"]


PASS = {"entries": "*i64", "blocks": "*i32", "key0": "i32", "key1": "i32", "moves": "*fp64"}
OF = {"MOVES": 2, "SCALES": 2, "DOUBLE": False, "WHOLE": True, "TILES": 32}


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.skipif("nvidia" not in triton.backends.backends, reason="triton has no NVIDIA compiler here")
@pytest.mark.parametrize("name", ["add normals", "add signs", "outer"])
def test_no_operation_is_fused_or_approximate_and_weights_move_in_16_bytes(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if name == "outer":
        types = dict.fromkeys(("matrix", "u", "v"), "*fp32") | {"scales": "*fp64"}
        types |= dict.fromkeys(("height", "width", "blocks"), "i32")
        constants = {"MOVES": 2, "RANK": 2, "SCALES": 2, "ROWS": 16, "COLUMNS": 128}
        kernel = kernels_triton.outer
    else:
        types, constants, kernel = PASS, OF | {"SIGNS": name == "add signs"}, kernels_triton.add
    code = compiled_for_h100(kernel, types, constants)
    assert re.search(r"\bmul(\.rn)?\.f(32|64)|\badd(\.rn)?\.f32", code)  # it is the code
    assert not re.search(r"\bfma\b|\.approx|\bdiv\.\w*\.?f(32|64)|\bex2\b|\blg2\b|\bsin\b|\bcos\b", code)
    assert ("sqrt.rn" in code) == (name == "add normals")
    assert not re.search(r"\b(mul|add|sub)(\.rn)?\.ftz", code)
    if name.startswith("add"):
        assert code.count("ld.global.v4.b32") == code.count("st.global.v4.b32") == 4


def test_nothing_of_triton_is_imported_before_a_cuda_tensor_comes():
    code = (
        "import sys, torch; from dpzero.zeroth_order import Gaussian; x = torch.zeros(5); "
        "Gaussian(0).add_([x], 0, 1.0); assert x.any(); "
        "assert not [m for m in sys.modules if m.startswith('dpzero') and 'triton' in m]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_triton_a_cuda_tensor_takes_plain_torch(monkeypatch):
    assert dispatch._triton(torch.device("cuda")) is launch_triton
    monkeypatch.setitem(sys.modules, "dpzero.zeroth_order.launch_triton", None)
    monkeypatch.delattr(package, "launch_triton")
    dispatch._triton.cache_clear()
    assert dispatch._triton(torch.device("cuda")) is None
    dispatch._triton.cache_clear()
