"""Keys of one run: workers and driver on a shared network talk to each other and to nobody else."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scheduler.execution.slurm_commands import SlurmError

if TYPE_CHECKING:
    from distributed import Security

_CA, _CERT, _KEY = "ca.pem", "cert.pem", "key.pem"


def tls_arguments(folder: Path) -> list[str]:
    """What tells a worker's command line of the files of `folder`."""
    return [
        f"--tls-ca-file={folder / _CA}",
        f"--tls-cert={folder / _CERT}",
        f"--tls-key={folder / _KEY}",
    ]


def security_in(folder: Path) -> "Security":
    """Dask's security settings with the files of `folder`, which need not be there yet."""
    from distributed import Security

    ca, cert, key = (str(folder / name) for name in (_CA, _CERT, _KEY))
    return Security(
        require_encryption=True,
        tls_ca_file=ca,
        tls_client_cert=cert,
        tls_client_key=key,
        tls_scheduler_cert=cert,
        tls_scheduler_key=key,
        tls_worker_cert=cert,
        tls_worker_key=key,
    )


@contextlib.contextmanager
def temporary_keys(folder: Path) -> Iterator["Security"]:
    """Make a key and its certificate in `folder`, which every node must see and only this user may read.

    They are removed when the block ends.

    Raises
    ------
    SlurmError
        The library that makes them isn't installed.
    """
    from distributed import Security

    try:
        made = Security.temporary()
    except ImportError as error:
        raise SlurmError(
            "cluster.encrypt needs the library cryptography: pip install 'stackyard[slurm]'; or set it to "
            "false where nobody else is on the cluster's network"
        ) from error
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    try:
        for name, text in (
            (_CA, made.tls_ca_file),
            (_CERT, made.tls_worker_cert),
            (_KEY, made.tls_worker_key),
        ):
            path = folder / name
            path.touch(mode=0o600)
            path.write_text(text)
        yield security_in(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
