"""Formats of image files and their endings, whether or not they can be decoded here."""

# By Pillow's names.
FORMATS = {
    "PNG": ("png", "apng"),
    "JPEG": ("jpg", "jpeg", "jpe", "jif", "jfif", "pjpeg", "pjp"),
    "JPEG2000": ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
    "WEBP": ("webp",),
    "AVIF": ("avif", "avifs"),
    "HEIF": ("heic", "heif", "heics", "heifs", "hif"),
    "GIF": ("gif",),
    "BMP": ("bmp", "dib"),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
}
IMAGE_ENDINGS = tuple(f".{ending}" for endings in FORMATS.values() for ending in endings)
