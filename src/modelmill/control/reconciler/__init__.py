"""Makes the workers of a node match the deployments: one loop, and one file for each thing that it
decides.
"""
