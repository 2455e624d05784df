def end_to_end(device, *, quick=False, say=None):
    return []


def table(rows):
    return ""
