import json
import os

import networkx as nx

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

roads = nx.Graph()
side = event["side"]
for at in range(side * side):
    x, y = at % side, at // side
    if x + 1 < side:
        roads.add_edge(at, at + 1, km=(at * 37 + 11) % 23 + 1)
    if y + 1 < side:
        roads.add_edge(at, at + side, km=(at * 53 + 7) % 29 + 1)

tree = nx.minimum_spanning_tree(roads, weight="km")
print("spanning tree", tree.number_of_edges(), int(tree.size(weight="km")))
print("route", nx.shortest_path_length(roads, 0, side * side - 1, weight="km"))
print("hops", max(nx.single_source_shortest_path_length(roads, 0).values()))
print("components", nx.number_connected_components(roads))
