"""What compression did to a model, as one page to look at, and as CSV, PNG and Markdown.

    write(["sweep/"], "page.html")
"""

from .collect import Coded, Layer, Subject, collect
from .write import Outputs, write

__all__ = ["Coded", "Layer", "Outputs", "Subject", "collect", "write"]
