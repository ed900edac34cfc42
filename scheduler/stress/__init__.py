"""`stackyard stress`: the real scheduler under hogs, kills and faults, its promises checked from outside."""
