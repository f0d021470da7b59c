"""Everything that imports ray: runs the functions of the other rooms many times, decides nothing about results."""
