"""What the verbs of the command line do: text becomes objects, objects do the work, results are printed.

Separate from `cli.py` because it brings torch.
"""

from mithridate.verbs.leaks import invert as invert
from mithridate.verbs.pipelines import audit as audit, craft as craft
from mithridate.verbs.scans import scan as scan
from mithridate.verbs.studies import report as report, study as study, trial as trial
