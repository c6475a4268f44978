"""Interrupted encodings go on where they were and make the same file; a state that does not fit is refused."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")
from encoder_models import Residual, Words, seeded  # noqa: E402

import tersor  # noqa: E402
from tersor import records  # noqa: E402
from tersor.encoding import Encoding  # noqa: E402
from tersor.errors import StateError  # noqa: E402
from tersor.sensitivity import calibrate  # noqa: E402


class Killed(BaseException):
    """What no handler of ordinary errors stops."""


def stop_after(monkeypatch: pytest.MonkeyPatch, layers: int) -> list[str]:
    """Let so many layers be quantised, then stop; the names of those that were."""
    done: list[str] = []
    real = Encoding.quantise_layer

    def counted(self: Encoding, target: Any) -> None:
        if len(done) == layers:
            raise Killed
        real(self, target)
        done.append(target.name)

    monkeypatch.setattr(Encoding, "quantise_layer", counted)
    return done


def through(model: Any, stats: Any, folder: Path, stops: list[int], **options: Any) -> tuple[bytes, int]:
    """The file of a run that is interrupted after so many layers, each time; and how many layers were quantised."""
    total = 0
    for stop in [*stops, 10**9]:
        with pytest.MonkeyPatch.context() as patch:
            done = stop_after(patch, stop)
            try:
                packed = tersor.compress(model, stats, state=folder, **options)
            except Killed:
                total += len(done)
                continue
        return packed.data, total + len(done)
    raise AssertionError


@pytest.fixture(scope="module")
def residual() -> tuple[Any, Any]:
    model = seeded(Residual)
    return model, calibrate(model, torch.randn(12, 3, 20, 20, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("options", [
    {"snr": 15.0, "effort": 5}, {"bits": 3.0, "effort": 6}, {"bits": 3.0, "effort": 9},
    {"bits": 4.0, "effort": 4, "mode": "fast"},
    {"bits": 2.5, "tools": ("kernels",), "effort": 5,
     "kernels": tersor.KernelConfig(size=6, gains=False, signs=False)}])
def test_the_same_file_after_interruptions(residual: tuple[Any, Any], tmp_path: Path, options: dict[str, Any]) -> None:
    model, stats = residual
    with pytest.MonkeyPatch.context() as patch:
        counted = stop_after(patch, 10**9)
        plain = tersor.compress(model, stats, **options)
        once = len(counted)
    data, total = through(model, stats, tmp_path / "state", [3, 2, 9], **options)
    assert data == plain.data
    # The encoding at which layers' distortions are measured begins anew, all six of them.
    assert once <= total <= once + (6 if options["effort"] == 9 else 0), "no layer was quantised twice"
    again, none = through(model, stats, tmp_path / "state", [], **options)
    assert again == data and none == 0, "everything is there"


def test_without_a_network_and_with_shared_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = {f"l{i}.weight": rng.normal(size=(30, 40)).astype(np.float32) for i in range(4)}
    layers = {r"l[01]\.weight": tersor.LayerConfig(tool="codebook")}
    plain = tersor.compress(model, bits=3.0, layers=layers)
    data, _ = through(model, None, tmp_path / "state", [1, 2], bits=3.0, layers=layers)
    assert data == plain.data


def test_a_walk_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    model = seeded(Words)
    stats = calibrate(model, torch.randint(0, 50, (12, 9), generator=torch.Generator().manual_seed(1)))
    object.__setattr__(stats.graph, "calls", stats.graph.calls + 1)  # the walk will miss a call at its end
    plain = tersor.compress(model, stats, bits=4.0, effort=6)
    assert any("took another way" in note for note in plain.notes)
    data, _ = through(model, stats, tmp_path / "state", [4, 6, 3], bits=4.0, effort=6)
    assert data == plain.data


def test_a_state_of_something_else_is_refused(residual: tuple[Any, Any], tmp_path: Path) -> None:
    model, stats = residual
    tersor.compress(model, stats, bits=5.0, effort=3, state=tmp_path / "state")
    other = calibrate(model, torch.randn(12, 3, 20, 20))
    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("another target", model, stats, {"bits": 5.5, "effort": 3}),
        ("another options", model, stats, {"bits": 5.0, "effort": 4}),
        ("another model", seeded(Residual, 1), None, {"bits": 5.0, "effort": 3}),
        ("other statistics", model, other, {"bits": 5.0, "effort": 3})]
    for what, given, measured, options in cases:
        with pytest.raises(StateError, match=f"is the state of another task: it has {what}"):
            tersor.compress(given, measured, state=tmp_path / "state", **options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("important")
    with pytest.raises(StateError, match="other things in it"):
        tersor.compress(model, stats, bits=5.0, state=tmp_path / "other")
    for path, change in ((tmp_path / "state" / "trial-0.tersor", b"x"), (tmp_path / "state" / "trial-0", b"\0" * 99),
                         (tmp_path / "state" / "state", b"{}")):
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + change)
        with pytest.raises(StateError, match="cannot go on from this"):
            tersor.compress(model, stats, bits=5.0, effort=3, state=tmp_path / "state")
        path.write_bytes(kept)
    tersor.compress(model, stats, bits=5.0, effort=3, state=tmp_path / "state")


def test_hostile_layers_are_refused(residual: tuple[Any, Any], tmp_path: Path) -> None:
    """Whoever can write a state can also compute its checksum; nothing worse than an error may come of it."""
    model, stats = residual
    folder = tmp_path / "state"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        stop_after(patch, 2)
        tersor.compress(model, stats, bits=3.0, effort=5, state=folder)
    place = folder / "layers-0" / "0001"
    good = records.load(place, (tersor.journal.ScalarCode, tersor.journal.Known, tersor.journal.Variant))
    code = good["code"]
    q = code.q
    bad: list[Any] = [
        {}, [], 3, None, good | {"name": "head.weight"}, good | {"code": 7}, good | {"code": None},
        good | {"code": changed(code, q=q[:, :3])}, good | {"code": changed(code, q=q.astype(np.int64))},
        good | {"code": changed(code, q=q.reshape(-1))}, good | {"code": changed(code, step_index="1")},
        good | {"code": changed(code, row_index=np.zeros(3, np.int64))}, good | {"decision": "yes"},
        good | {"code": changed(code, trellis=5)}, good | {"generator": np.zeros(7, np.uint8)},
        good | {"known": ["x"]}]
    for record in bad:
        records.save(place, record)
        with pytest.raises(StateError):
            tersor.compress(model, stats, bits=3.0, effort=5, state=folder)
    records.save(place, good)
    tersor.compress(model, stats, bits=3.0, effort=5, state=folder)


def changed(code: Any, **fields: Any) -> Any:
    """A code with fields that its class would not accept."""
    copy = object.__new__(type(code))
    vars(copy).update(vars(code) | fields)
    return copy


@dataclass(frozen=True)
class Sample:
    number: float
    arrays: dict[str, npt.NDArray[np.int32]]
    pair: tuple[int, ...] | None = None


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "x\n\u00e9"], 3: (np.float64(0.1), np.int64(4)), "inf": float("inf"),
             "bytes": b"\0\xff", "sample": Sample(1.0, {"q": np.array([[1, -300]], np.int32)}, (1, 2)),
             "none": np.zeros((0, 3), np.int64),
             "wide": np.array([2**40, -1]), "real": np.array([[0.1]], np.float64), "zero": np.array(7, np.int32)}
    records.save(tmp_path / "r", value)
    found = records.load(tmp_path / "r", [Sample])
    assert found["a"] == value["a"] and found[3] == (0.1, 4) and found["inf"] == float("inf")
    assert found["bytes"] == b"\0\xff" and found["sample"].pair == (1, 2)
    for name in ("none", "wide", "real", "zero"):
        assert np.array_equal(found[name], value[name]) and found[name].dtype == value[name].dtype  # type: ignore[index]
        assert found[name].shape == value[name].shape  # type: ignore[index]
    assert found["sample"].arrays["q"].tolist() == [[1, -300]] and found["sample"].arrays["q"].dtype == np.int32
    with pytest.raises(StateError, match="Sample"):
        records.load(tmp_path / "r")
    with pytest.raises(TypeError, match="a set cannot be kept"):
        records.save(tmp_path / "s", {1, 2})
    assert not (tmp_path / "s").exists()


def test_records_that_are_none(tmp_path: Path) -> None:
    records.save(tmp_path / "r", [1])
    data = (tmp_path / "r").read_bytes()
    body = data[len(records.MAGIC) + 32 :]
    rest = [data[:20], b"", b"\x80\x04N.", data[:-1], data[:-1] + b"?", data.replace(b"state 1", b"state 2")]
    # Right checksums around nonsense.
    rest += [records.MAGIC + hashlib.sha256(part).digest() + part for part in
             (b"", body[:30], body.replace(b'{"list":[1]}', b'{"list":{1}}'),
              body.replace(b'{"list":[1]}', b'{"clas":[1]}'),
              body.replace(b'"list"', b'"arry"'), body.replace(b'{"list":[1]}', b"[1,1,1,1,1] "))]
    for part in rest:
        (tmp_path / "r").write_bytes(part)
        with pytest.raises(StateError, match="cannot go on from this state"):
            records.load(tmp_path / "r")


def test_calibration_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.calibration import run as run_module
    from tersor.calibration import saved
    model = seeded(Residual)
    generator = torch.Generator().manual_seed(4)
    batches = [torch.randn(size, 3, 8, 8, generator=generator) for size in (5, 3, 6, 2, 4)]
    calibrate(model, batches, keep=12, vectors=2, max_positions=20).save(tmp_path / "plain")
    monkeypatch.setattr(saved, "INTERVAL", 0.0)
    monkeypatch.setattr(saved, "SHARE", 0.0)
    ran: list[int] = []
    real = run_module.Run.add

    def counted(self: Any, batch: Any) -> int:
        ran.append(batch.images)
        return real(self, batch)

    monkeypatch.setattr(run_module.Run, "add", counted)

    def measure(given: Any, **options: Any) -> Any:
        return calibrate(model, given, keep=12, vectors=2, max_positions=20, state=tmp_path / "state", **options)

    def stopping(images: int) -> None:
        if images == 14:
            raise Killed

    with pytest.raises(Killed):
        measure(batches, progress=stopping)
    measure(batches).save(tmp_path / "resumed")
    # Killed before the third batch was saved: it is run again, no other.
    assert ran == [5, 3, 6, 6, 2, 4]
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "plain").read_bytes()
    measure(batches)
    assert len(ran) == 6, "all was there"
    for other in ([batches[0] * 2, *batches[1:]], batches[:3]):
        with pytest.raises(StateError, match="other batches"):
            measure(other)
    with pytest.raises(StateError, match="another calibration"):
        calibrate(model, batches, keep=12, state=tmp_path / "state")
    newest = max((tmp_path / "state").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    good = records.load(newest)
    for key, value in (("sums", {}), ("generator", np.zeros(3, np.uint8)), ("positions", [1]), ("described", {})):
        records.save(newest, good | {"run": good["run"] | {key: value}})
        with pytest.raises(StateError, match="cannot go on from this calibration"):
            measure(batches)
    assert len(list((tmp_path / "state").iterdir())) == 2, "older saves are removed"


def test_the_command_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    from tersor.cli import main
    rng = np.random.default_rng(0)
    arrays = {f"l{i}.weight": rng.normal(size=(30, 40)).astype(np.float32) for i in range(4)}
    save_file(arrays, tmp_path / "m.safetensors")
    model, output, state = (str(tmp_path / name) for name in ("m.safetensors", "m.tersor", "state"))
    command = ["compress", model, "--bits", "4", "--effort", "4"]
    assert main([*command, "-o", str(tmp_path / "plain.tersor")]) == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        stop_after(patch, 5)
        main([*command, "-o", output, "--state", state])
    assert (tmp_path / "state" / "encoding" / "state").exists()
    assert main([*command, "-o", output, "--state", state]) == 0
    assert Path(output).read_bytes() == (tmp_path / "plain.tersor").read_bytes()
    assert main(["compress", model, "--bits", "5", "-f", "-o", output, "--state", state]) == 1
    assert "is the state of another task" in capsys.readouterr().err
    assert main([*command, "--dry-run"]) == 0
    assert "GB of memory (foretold" in capsys.readouterr().err


def test_a_fixed_transform_is_kept(tmp_path: Path) -> None:
    """DCTs are members of an enumeration: they come back as such, not as bare numbers, which no field takes."""
    from tersor.synthesis.scalar import ScalarCode
    from tersor.synthesis.transform import TransformCode
    from tersor.synthesis.transform_maps import Dct

    inner = ScalarCode(np.arange(18, dtype=np.int32).reshape(2, 9), 3)
    for taps in (Dct.I, Dct.II, inner, None):
        records.save(tmp_path / "code", TransformCode(inner, taps=taps))
        back = records.load(tmp_path / "code", (ScalarCode, TransformCode))
        assert type(back.taps) is type(taps)
        assert taps is inner or back.taps == taps
