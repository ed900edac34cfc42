"""What can be wrong with images: three errors, one message each, all of which survive pickling."""


class InputError(ValueError):
    """The folder, the pattern, the selection or the set of planes can't be used; nothing was read."""


class ImageError(ValueError):
    """A file isn't what its stack says: damaged, of another shape or dtype, or not an image at all."""


class OutputError(ValueError):
    """A result can't be written as asked: the name, the folder, the dtype or the format is wrong."""


def said(error: BaseException) -> str:
    """ "ValueError: what it says", or the type alone where it says nothing."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
