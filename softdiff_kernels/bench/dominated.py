def dominated(device, *, quick=False, say=None):
    return []


def table(rows):
    return ""
