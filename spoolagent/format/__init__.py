"""Format 1 of the spool: the only part that training processes import (standard library and orjson)."""
