"""Small files of the kinds that hospitals and scanners write, made here so that what is in them is known."""

from __future__ import annotations

import io

import numpy as np
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

SIDE, TILE = 1024, 128


def dicom(pixels: np.ndarray, **tags: object) -> bytes:
    """A small file; pixels ``[H, W]``, ``[N, H, W]`` or ``[H, W, 3]``."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    color = pixels.shape[-1] == 3
    data.SamplesPerPixel = 3 if color else 1
    data.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        data.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.Rows, data.Columns = pixels.shape[:2] if color else pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    data.Modality, data.PatientID = "OT", "p1"
    for name, value in tags.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def picture(side: int = SIDE) -> np.ndarray:
    """Glass with one square of stained tissue, from a quarter to three quarters of each side."""
    pixels = np.full((side, side, 3), 243, np.uint8)
    noise = np.random.default_rng(0).integers(-6, 7, (side, side, 1))
    inside = slice(side // 4, 3 * side // 4)
    pixels[inside, inside] = (190, 110, 170)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def half(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).reduce(2))


def pyramid(pixels: np.ndarray, mpp: float, levels: int = 3, **options: object) -> bytes:
    """A tiled TIFF with its levels as sub-images, its resolution in pixels a centimetre."""
    buffer = io.BytesIO()
    per_cm = 10_000 / mpp
    with tifffile.TiffWriter(buffer) as writer:
        common = {"tile": (TILE, TILE), "photometric": "rgb", "resolutionunit": "CENTIMETER", **options}
        writer.write(pixels, subifds=levels - 1, resolution=(per_cm, per_cm), **common)
        for _ in range(levels - 1):
            pixels = half(pixels)
            writer.write(pixels, subfiletype=1, **common)
    return buffer.getvalue()


def tiled_dicom(pixels: np.ndarray, mpp: float, sparse: bool = False, packed: bool = False, **tags: object) -> bytes:
    """A slide's level, its tiles in full order, or shuffled with their positions and without the glass."""
    grid = [-(-side // TILE) for side in pixels.shape[:2]]
    padded = np.full((grid[0] * TILE, grid[1] * TILE, 3), 255, np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    cells = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
    blocks = {(r, c): padded[r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE] for r, c in cells}
    if sparse:
        cells = [cells[i] for i in np.random.default_rng(1).permutation(len(cells))]
        cells = [cell for cell in cells if blocks[cell].min() < 200]
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.{pixels.shape[0]}"
    data.SeriesInstanceUID, data.PatientID, data.Modality = "1.2.3.4", "p1", "SM"
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.Rows = data.Columns = TILE
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.NumberOfFrames = len(cells)
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = pixels.shape[:2]
    data.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    data.SharedFunctionalGroupsSequence = [Dataset()]
    measures = Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [measures]
    if sparse:
        data.PerFrameFunctionalGroupsSequence = [_position(*cell) for cell in cells]
    frames = [blocks[cell].tobytes() for cell in cells]
    if packed:
        frames = [_jpeg(blocks[cell]) for cell in cells]
        data.PhotometricInterpretation = "YBR_FULL_422"
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if packed else ExplicitVRLittleEndian
    data.PixelData = encapsulate(frames, has_bot=False) if packed else b"".join(frames)
    data["PixelData"].VR = "OB"
    for name, value in tags.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _position(row: int, column: int) -> Dataset:
    groups, place = Dataset(), Dataset()
    place.RowPositionInTotalImagePixelMatrix = row * TILE + 1
    place.ColumnPositionInTotalImagePixelMatrix = column * TILE + 1
    groups.PlanePositionSlideSequence = [place]
    return groups


def _jpeg(block: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(block).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
