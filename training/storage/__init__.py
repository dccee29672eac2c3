"""Read and write bytes by URI, in S3 (`s3://bucket/key`) or on disk (`file:///path` or a path).

`from training import storage` is how every other package reads and writes. This is the only package that imports boto3.
"""

from training.storage.disk import local_path as local_path
from training.storage.errors import ObjectNotFoundError as ObjectNotFoundError
from training.storage.errors import StorageError as StorageError
from training.storage.retry import OUTAGE_SECONDS as OUTAGE_SECONDS
from training.storage.retry import retry as retry
from training.storage.store import delete as delete
from training.storage.store import delete_partial_files as delete_partial_files
from training.storage.store import delete_prefix as delete_prefix
from training.storage.store import download as download
from training.storage.store import exists as exists
from training.storage.store import is_s3 as is_s3
from training.storage.store import join as join
from training.storage.store import list_dirs as list_dirs
from training.storage.store import list_objects as list_objects
from training.storage.store import list_uris as list_uris
from training.storage.store import open_local as open_local
from training.storage.store import open_seekable as open_seekable
from training.storage.store import read_bytes as read_bytes
from training.storage.store import read_json as read_json
from training.storage.store import size as size
from training.storage.store import upload as upload
from training.storage.store import version as version
from training.storage.store import write_bytes as write_bytes
from training.storage.store import write_json as write_json
