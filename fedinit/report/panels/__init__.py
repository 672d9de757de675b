"""The sections of a report, one a file, in the order of `PANELS` of fedinit.report.page: each takes the methods that
are shown and gives a `Panel`. What a run did not record is one line that says how to have it."""
