package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"html/template"
)

const page = `<h1>{{.Title}}</h1>{{range $at, $host := .Hosts}}
<p class="{{if $host.Up}}up{{else}}down{{end}}">{{$at}}: {{$host.Name}} ({{printf "%.1f" $host.Load}})</p>{{end}}`

type host struct {
	Name string
	Up   bool
	Load float64
}

func main() {
	var event struct {
		Title string
		Hosts int
	}
	read(&event)
	hosts := make([]host, event.Hosts)
	for at := range hosts {
		hosts[at] = host{fmt.Sprintf("host-%d <eu>", at), at%9 != 0, float64(at*37%100) / 10}
	}
	var out bytes.Buffer
	shown := map[string]any{"Title": event.Title, "Hosts": hosts}
	if err := template.Must(template.New("page").Parse(page)).Execute(&out, shown); err != nil {
		panic(err)
	}
	fmt.Printf("%d %x\n", out.Len(), sha256.Sum256(out.Bytes()))
	fmt.Println(out.String()[:120])
}
