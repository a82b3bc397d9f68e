"""NIfTI slices, safe archives, and a fuzzer over every format."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.readers import ReadContext, archive, read

RNG = np.random.default_rng(0)


def nifti(array: np.ndarray, zooms: tuple[float, ...] = (1, 1, 3), kind: type = nibabel.Nifti1Image) -> bytes:
    image = kind(array, np.eye(4))
    image.header.set_zooms((*zooms, 1.0)[: array.ndim])
    return image.to_bytes()


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("packed", [False, True])
def test_a_volume_is_its_slices_along_the_coarsest_axis(kind: type, packed: bool) -> None:
    volume = RNG.integers(0, 4000, (7, 8, 5)).astype(np.int16)
    data = nifti(volume, kind=kind)
    images = list(read(gzip.compress(data) if packed else data, ReadContext(modality="mri", name="v.nii.gz")))
    assert [i.index for i in images] == [0, 1, 2, 3, 4]
    assert images[0].pixels.shape == (8, 7, 1)
    assert images[0].modality == "mri"
    low, high = volume.min(), volume.max()
    expected = np.rint((volume[::-1, ::-1, 2].T - low) / (high - low) * 65535)
    np.testing.assert_allclose(images[2].pixels[..., 0], expected, atol=1)
    across = list(read(nifti(volume, zooms=(4, 1, 1)), ReadContext(name="v.nii")))
    assert len(across) == 7


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "SRA"])
@pytest.mark.parametrize("color", [False, True])
def test_a_volume_looks_the_same_in_whatever_order_its_voxels_are_stored(codes: str, color: bool) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]) if color else np.dtype(np.int16)
    volume = np.zeros((7, 8, 5), kind)  # of axes to right, anterior, superior
    volume[4:, 5:] = (90, 60, 30) if color else 100  # right and in front
    plain = nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 3.0, 1.0]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt(("R", "A", "S")), nibabel.orientations.axcodes2ornt(tuple(codes))
    )
    images = list(read(plain.as_reoriented(turn).to_bytes(), ReadContext(name="v.nii")))
    assert [i.pixels.shape for i in images] == [(8, 7, 3 if color else 1)] * 5
    for image in images:
        assert np.array_equal(np.argwhere(image.pixels[..., 0]), [(r, c) for r in range(3) for c in range(3)])


def test_series_empty_slices_and_nan() -> None:
    series = RNG.normal(size=(6, 6, 3, 2)).astype(np.float32)
    series[:, :, 1, 0] = 0.0
    series[0, 0, 0, 0] = np.nan
    assert len(list(read(nifti(series), ReadContext(name="v.nii")))) == 5
    with pytest.raises(UnreadableImage, match="NaN"):
        list(read(nifti(np.full((4, 4, 2), np.nan, np.float32)), ReadContext(name="v.nii")))


def test_bad_volumes_are_named() -> None:
    good = nifti(RNG.normal(size=(6, 6, 4)).astype(np.float32))
    for data, says in (
        (good[:100], "truncated|format"),
        (good[:500], ""),
        (gzip.compress(good)[:50], "gzip"),
        (gzip.compress(bytes(10**7)), "unpacks|header"),
    ):
        with pytest.raises(UnreadableImage, match=says):
            list(read(data, ReadContext(name="v.nii.gz", max_pixels=10**6)))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_members_of_zip_and_tar_come_whole_and_in_order(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z, tarfile.open(tmp_path / "a.tar.gz", "w:gz") as t:
        for i in range(3):
            z.writestr(f"d/{i}.png", png(i))
            info = tarfile.TarInfo(f"d/{i}.png")
            info.size = len(png(i))
            t.addfile(info, io.BytesIO(png(i)))
    for name in ("a.zip", "a.tar.gz"):
        path = tmp_path / name
        assert archive.is_archive(path)
        assert archive.names(path) == [f"d/{i}.png" for i in range(3)]
        assert list(archive.members(path)) == [(f"d/{i}.png", png(i)) for i in range(3)]
        assert archive.read_member(path, "d/1.png") == png(1)
        with pytest.raises(UnreadableImage, match="no such member"):
            archive.read_member(path, "d/9.png")


def test_dangerous_members_are_refused_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("../evil.png", png(0))
        z.writestr("/abs.png", png(0))
        z.writestr("bomb.npy", bytes(64 * 1024**2))
        z.writestr("good.png", png(1))
    data = bytearray(path.read_bytes())
    found = {n: c if isinstance(c, bytes) else c.reason for n, c in archive.members(path)}
    assert "leads out" in found["../evil.png"]
    assert "leads out" in found["/abs.png"]
    assert "decompression bombs" in found["bomb.npy"]
    assert found["good.png"] == png(1)
    (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
    assert archive.is_archive(tmp_path / "cut.zip")
    with pytest.raises(UnreadableImage, match="is a damaged archive"):
        archive.names(tmp_path / "cut.zip")

    with tarfile.open(tmp_path / "bad.tar", "w") as t:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        t.addfile(link)
        for name in ("../evil.png", "good.png", "last.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png(1))
            t.addfile(info, io.BytesIO(png(1)))
    found = {n: c if isinstance(c, bytes) else c.reason for n, c in archive.members(tmp_path / "bad.tar")}
    assert "link" in found["link.png"]
    assert "leads out" in found["../evil.png"]
    assert found["good.png"] == png(1)
    whole = (tmp_path / "bad.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(b"last.png") + 600])
    rest = dict(archive.members(tmp_path / "cut.tar"))
    assert rest["good.png"] == png(1)
    assert any("truncated" in c.reason for c in rest.values() if isinstance(c, UnreadableImage))


def test_a_protected_member_says_so(tmp_path: Path) -> None:
    path = tmp_path / "locked.zip"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("a.png", png(0))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    ((_, content),) = archive.members(path)
    assert isinstance(content, UnreadableImage)
    assert "password" in content.reason


def seeds() -> dict[str, bytes]:
    jpeg = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(jpeg, "JPEG")
    tif = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (16, 16), dtype=np.uint8)).save(tif, "TIFF")
    array, arrays = io.BytesIO(), io.BytesIO()
    np.save(array, RNG.integers(0, 256, (16, 16), dtype=np.uint8))
    np.savez(arrays, train_images=RNG.integers(0, 256, (3, 8, 8), dtype=np.uint8))
    volume = nifti(RNG.integers(0, 99, (6, 6, 3)).astype(np.int16))
    return {
        "a.png": png(0), "a.jpg": jpeg.getvalue(), "a.tif": tif.getvalue(), "a.npy": array.getvalue(),
        "a.npz": arrays.getvalue(), "a.nii": volume, "a.nii.gz": gzip.compress(volume),
        "a.dcm": Path(get_testdata_file("CT_small.dcm")).read_bytes()[:12_000],
        "b.dcm": Path(get_testdata_file("MR_small_RLE.dcm")).read_bytes(),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(seeds()))
def test_broken_bytes_raise_one_kind_of_error_only(name: str) -> None:
    """Bit flips, truncations and foreign headers: a picture or a reason, never another exception."""
    content = seeds()
    original, others = content[name], list(content.values())
    generator = np.random.default_rng(len(name))
    for trial in range(60):
        data = bytearray(original)
        kind = trial % 3
        if kind == 0:
            for _ in range(int(generator.integers(1, 20))):
                data[int(generator.integers(0, min(len(data), 2000)))] ^= 1 << int(generator.integers(0, 8))
        elif kind == 1:
            data = data[: int(generator.integers(0, len(data)))]
        else:
            data[:64] = others[int(generator.integers(0, len(others)))][:64]
        refusal: UnreadableImage | None = None
        try:
            for image in read(bytes(data), ReadContext(name=name, max_pixels=10**7)):
                assert image.pixels.dtype in (np.uint8, np.uint16)
        except UnreadableImage as error:
            refusal = error
        assert refusal is None or (refusal.path == name and refusal.reason)


def test_a_bomb_in_the_header_of_a_member_and_a_file_that_looks_like_lzma(tmp_path: Path) -> None:
    bomb = tarfile.TarInfo("././@LongLink")
    bomb.type, bomb.size = tarfile.GNUTYPE_LONGNAME, 64 * 1024**2
    good = tarfile.TarInfo("good.png")
    good.size = len(png(1))
    blocks = good.tobuf() + png(1) + bytes(-len(png(1)) % 512)
    data = blocks + bomb.tobuf() + bytes(bomb.size) + blocks
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(data, 1))
    found = dict(archive.members(tmp_path / "bomb.tar.gz"))
    assert found["good.png"] == png(1)
    assert isinstance(found["(rest)"], UnreadableImage)
    # Header of the old LZMA format: a dictionary of 4 GB, which is asked for before anything is unpacked.
    (tmp_path / "lzma").write_bytes(b"\x5d" + b"\xff" * 12 + bytes(200))
    tracemalloc.start()
    assert not archive.is_archive(tmp_path / "lzma")
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


@pytest.mark.parametrize("how", ["gz", "bz2", "xz"])
def test_packed_tars(how: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.tar.{how}"
    with tarfile.open(path, f"w:{how}") as t:
        info = tarfile.TarInfo("a.png")
        info.size = len(png(1))
        t.addfile(info, io.BytesIO(png(1)))
    assert archive.is_archive(path)
    assert dict(archive.members(path)) == {"a.png": png(1)}


def test_a_pickled_array_in_an_npz_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(tmp_path / "trap.npz", image=np.array([Trap()], dtype=object))
    with pytest.raises(UnreadableImage, match="never unpickled"):
        list(read(tmp_path / "trap.npz"))
    assert not (tmp_path / "sprung").exists()


def test_a_link_in_a_zip_is_not_followed(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr(info, "/etc/passwd")
        z.writestr("C:/x.png", png(0))
        z.writestr("good.png", png(1))
    found = {n: c if isinstance(c, bytes) else c.reason for n, c in archive.members(tmp_path / "a.zip")}
    assert "link" in found["link.png"]
    assert "leads out" in found["C:/x.png"]
    assert found["good.png"] == png(1)


def test_of_two_members_of_one_name_the_last_counts(tmp_path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "twice.zip", "w") as z:
        warnings.simplefilter("ignore")  # zipfile says so, too
        z.writestr("a.png", png(0))
        z.writestr("a.png", png(1))
    assert archive.names(tmp_path / "twice.zip") == ["a.png"]
    assert list(archive.members(tmp_path / "twice.zip")) == [("a.png", png(1))]
