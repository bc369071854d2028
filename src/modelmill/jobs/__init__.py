"""Jobs: processes that train, evaluate and import. They write files into their own folder, never
the database.
"""
