"""The prediction against public runs: each row of harness/catalog/evidence/ from its configuration alone."""

from harness.evidence.compared import COLUMNS, FITTED, Compared, compare, compared
from harness.evidence.document import as_dict, document
from harness.evidence.errors import Errors, by, errors, held_out, intervals, layered, rates, term_errors, verdicts
from harness.evidence.rows import rows, scenario

__all__ = [
    "COLUMNS", "FITTED", "Compared", "Errors", "as_dict", "by", "compare", "compared", "document", "errors", "held_out",
    "intervals", "layered", "rates", "rows", "scenario", "term_errors", "verdicts",
]  # fmt: skip
