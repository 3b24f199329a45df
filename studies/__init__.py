"""One file per published table: functions that return trials, for `mithridate study studies.FILE:FUNCTION`."""
