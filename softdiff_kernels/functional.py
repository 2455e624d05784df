from .reference import *  # replaced by the dispatching functions
