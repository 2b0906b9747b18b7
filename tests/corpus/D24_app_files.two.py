from concurrent_swarm.client import ApplicationNode


class One(ApplicationNode):
    pass


class Two(ApplicationNode):
    pass
