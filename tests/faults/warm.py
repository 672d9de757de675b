"""What the fork server imports: the program and the data of `processes`."""

from tests.faults.processes import site

site()
