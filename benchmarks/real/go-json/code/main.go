package main

import (
	"encoding/json"
	"fmt"
	"sort"
)

type item struct {
	Name  string            `json:"name"`
	Price int               `json:"price"`
	Tags  []string          `json:"tags,omitempty"`
	More  map[string]string `json:"more"`
}

func main() {
	var event struct {
		Items int
		Tags  []string
	}
	read(&event)
	items := make([]item, event.Items)
	for at := range items {
		more := map[string]string{"shelf": fmt.Sprint(at % 13), "origin": "KR"}
		items[at] = item{fmt.Sprintf("item %d", at), at * 31 % 997, event.Tags[:at%len(event.Tags)], more}
	}
	text, _ := json.Marshal(items)
	var again []item
	if err := json.Unmarshal(text, &again); err != nil {
		panic(err)
	}
	sort.SliceStable(again, func(a, b int) bool { return again[a].Price > again[b].Price })
	top, _ := json.Marshal(again[:3])
	fmt.Println(len(text), len(again))
	fmt.Println(string(top))
}
