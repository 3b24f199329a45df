"""What the verbs of the command line do: text becomes objects, objects do the work, results are printed.

Separate from `cli` because it brings torch.
"""

from mithridate.verbs.doses import dose as dose
from mithridate.verbs.evasions import evade as evade
from mithridate.verbs.exchanges import export as export, import_ as import_, verify as verify
from mithridate.verbs.leaks import invert as invert
from mithridate.verbs.lifts import lift as lift
from mithridate.verbs.methods import methods as methods
from mithridate.verbs.pipelines import audit as audit, craft as craft
from mithridate.verbs.protects import protect as protect
from mithridate.verbs.scans import scan as scan
from mithridate.verbs.studies import report as report, study as study, trial as trial
