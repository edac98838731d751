"""What can be wrong on a host: `examination` has the table of checks, its neighbours a function for each."""
