"""Small networks with one difficulty each, by family; `nets` collects them."""
