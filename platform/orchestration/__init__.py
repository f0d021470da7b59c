"""Everything that imports ray: it runs the functions of the other rooms many times and decides nothing about results."""
