"""Documents: files of many formats become one kind of value, a list of blocks with its origin."""

from onsil.documents.read import READERS, read, read_files, read_folder, scan
from onsil.documents.types import Block, Document, FileRef, read_documents, write_documents

__all__ = [
    "READERS",
    "Block",
    "Document",
    "FileRef",
    "read",
    "read_documents",
    "read_files",
    "read_folder",
    "scan",
    "write_documents",
]
