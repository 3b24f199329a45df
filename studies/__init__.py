"""One file per published table: functions that return a list of trials, for `mithridate study studies.FILE:FUNCTION`."""
