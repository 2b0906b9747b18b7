class App(:
    pass
