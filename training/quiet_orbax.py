"""Orbax without its log."""

import functools
import logging as std_logging
import os
from types import ModuleType

from absl import logging


@functools.cache
def orbax() -> ModuleType:
    """Import Orbax when first needed (half a second), and silence it."""
    import orbax.checkpoint as ocp

    root = os.path.dirname(ocp.__file__)

    def from_elsewhere(record: std_logging.LogRecord) -> bool:
        return not record.pathname.startswith(root)

    # Orbax shares absl's logger with everyone and logs a page per save. What matters it raises too,
    # and we repeat it in one line. The program sets the verbosity; this only filters by origin.
    logging.get_absl_logger().addFilter(from_elsewhere)

    # After a failed save asyncio reports, at any later time, the futures and tasks that Orbax has
    # abandoned. A task's report names its file; a future's does not.
    def not_abandoned(record: std_logging.LogRecord) -> bool:
        text = record.getMessage()
        task_of_orbax = text.startswith("Task exception was never retrieved") and root in text
        return not (task_of_orbax or text.startswith("Future exception was never retrieved"))

    std_logging.getLogger("asyncio").addFilter(not_abandoned)
    return ocp
