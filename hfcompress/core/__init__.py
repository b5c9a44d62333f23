"""The words every other room speaks: errors, configs, schedules, targets, families, and the method protocol."""
