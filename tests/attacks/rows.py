"""All rows of the table."""

import files
import ipc
import kernel
import network
import processes
from table import ROWS

__all__ = ["ROWS", "files", "ipc", "kernel", "network", "processes"]
