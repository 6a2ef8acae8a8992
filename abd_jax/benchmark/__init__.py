"""How fast a run is: its hot steps timed here, or compiled for another machine, and what whole runs take by them."""
