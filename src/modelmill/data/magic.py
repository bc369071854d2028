"""The kind of a picture file, by its name and by its first bytes."""

from modelmill.data.names import base_of

KINDS = {
    "jpeg": "jpg jpeg jpe jfif mpo",
    "png": "png apng",
    "gif": "gif",
    "bmp": "bmp dib",
    "webp": "webp",
    "tiff": "tif tiff",
    "ico": "ico cur",
    "jpeg2000": "jp2 j2k jpf jpx j2c jpc",
    "avif": "avif avifs",
    "heif": "heic heif hif",
    "netpbm": "pbm pgm ppm pnm pam pfm",
}
BY_EXTENSION = {
    extension: kind
    for kind, words in KINDS.items()
    for extension in words.split()
}
NOT_PICTURES = frozenset(
    (
        "txt",
        "md",
        "rst",
        "html",
        "htm",
        "pdf",
        "doc",
        "docx",
        "xls",
        "xlsx",
        "ppt",
        "pptx",
        "json",
        "jsonl",
        "csv",
        "tsv",
        "xml",
        "yaml",
        "yml",
        "toml",
        "ini",
        "cfg",
        "log",
        "lst",
        "names",
        "data",
        "mat",
        "npy",
        "npz",
        "pkl",
        "pt",
        "pth",
        "onnx",
        "h5",
        "hdf5",
        "parquet",
        "arrow",
        "db",
        "sqlite",
        "py",
        "ipynb",
        "sh",
        "mp4",
        "avi",
        "mov",
        "mkv",
        "webm",
        "wav",
        "mp3",
        "flac",
        "ogg",
        "m4a",
        "zip",
        "tar",
        "gz",
        "tgz",
        "bz2",
        "xz",
        "7z",
        "rar",
    )
)
STARTS = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
    (b"\x00\x00\x01\x00", "ico"),
    (b"\x00\x00\x02\x00", "ico"),
    (b"\x00\x00\x00\x0cjP  ", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
)


def extension(name: str) -> str:
    """The extension of a name in lower case, without its dot; empty when there is none."""
    stem, dot, end = base_of(name).rpartition(".")
    return end.lower() if dot and stem else ""


def kind_of_name(name: str) -> str:
    """The kind of picture that a file's extension names, or ""."""
    return BY_EXTENSION.get(extension(name), "")


def kind_of_data(data: bytes) -> str:
    """The kind of picture that the first bytes identify, or ""."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return _kind_of_brand(data[8:12])
    if data[:1] == b"P" and data[1:2] in b"1234567Ff" and data[2:3].isspace():
        return "netpbm"
    return next((kind for start, kind in STARTS if data.startswith(start)), "")


def _kind_of_brand(brand: bytes) -> str:
    """The kind of a picture in an ISO media file, by its brand."""
    if brand in (b"avif", b"avis"):
        return "avif"
    return "heif" if brand[:2] in (b"he", b"mi", b"ms") else ""
