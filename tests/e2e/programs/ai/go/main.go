// As python/main.py.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"

	"ai_client"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func joined(stream func(func(string) error) error) string {
	var pieces []string
	if err := stream(func(piece string) error { pieces = append(pieces, piece); return nil }); err != nil {
		log.Fatal(err)
	}
	return strings.Join(pieces, "|")
}

func main() {
	var given struct{ Prompt, Count string }
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		log.Fatal(err)
	}
	messages := []ai_client.Message{{Role: "system", Content: "Be brief."}, {Role: "user", Content: given.Prompt}}
	limit := ai_client.Options{Options: map[string]any{"num_predict": 3, "temperature": 0}}

	fmt.Println("generate:", must(ai_client.Generate(given.Prompt)))
	fmt.Println("limited:", must(ai_client.Generate(given.Count, limit)))
	fmt.Println("generate_stream:", joined(func(take func(string) error) error {
		return ai_client.GenerateStream(given.Count, take)
	}))
	fmt.Println("chat:", must(ai_client.Chat(messages)))
	fmt.Println("chat_stream:", joined(func(take func(string) error) error {
		return ai_client.ChatStream(messages, take)
	}))
	both := must(ai_client.EmbedAll([]string{given.Prompt, given.Count}))
	fmt.Printf("embed: %.6f %.6f %.6f\n", must(ai_client.Embed(given.Prompt))[0], both[0][7], both[1][7])
	var told *ai_client.Error
	for _, model := range []string{"no-such-model", "not-for-functions"} {
		_, err := ai_client.Generate(given.Prompt, ai_client.Options{Model: model})
		if errors.As(err, &told) {
			fmt.Println("refused:", told.Status, told)
		}
	}
	for answers := 0; ; answers++ {
		_, err := ai_client.Generate("count to 1")
		if errors.As(err, &told) {
			fmt.Println("limit:", answers, told.Status, told)
			break
		}
	}
}
