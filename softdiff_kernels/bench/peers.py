def absent():
    return {}
