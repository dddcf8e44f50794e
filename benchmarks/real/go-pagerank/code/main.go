package main

import (
	"fmt"
	"math"
	"sort"
)

func main() {
	var event struct {
		Pages, Links int
		Damping      float64
	}
	read(&event)
	rank, order := make([]float64, event.Pages), make([]int, event.Pages)
	for page := range rank {
		rank[page], order[page] = 1/float64(event.Pages), page
	}
	rounds := 0
	for change := 1.0; change > 1e-9 && rounds < 200; rounds++ {
		next := make([]float64, event.Pages)
		for page, share := range rank {
			for link := 0; link < event.Links; link++ {
				next[(page*(link*link+3)+link*17)%event.Pages] += share / float64(event.Links)
			}
		}
		change = 0
		for page := range next {
			next[page] = (1-event.Damping)/float64(event.Pages) + event.Damping*next[page]
			change += math.Abs(next[page] - rank[page])
		}
		rank = next
	}
	sort.SliceStable(order, func(a, b int) bool { return rank[order[a]] > rank[order[b]] })
	fmt.Println("rounds", rounds)
	for _, page := range order[:5] {
		fmt.Printf("%d %.5f\n", page, rank[page])
	}
}
