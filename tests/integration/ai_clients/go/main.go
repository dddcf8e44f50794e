// As python/main.py.
package main

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"ai_client"
)

var errEnough = errors.New("enough")

func call(name, text string) ([]string, error) {
	var options []ai_client.Options
	if short, briefly := strings.CutSuffix(name, "-briefly"); briefly {
		name = short
		options = append(options, ai_client.Options{Timeout: 300 * time.Millisecond})
	}
	var pieces []string
	take := func(piece string) error {
		pieces = append(pieces, piece)
		return nil
	}
	messages := []ai_client.Message{{Role: "user", Content: text}}
	switch name {
	case "generate":
		return one(ai_client.Generate(text, options...))
	case "generate-tuned":
		return one(ai_client.Generate(text, ai_client.Options{
			Model:   "other",
			System:  "Be brief.",
			Options: map[string]any{"temperature": 0},
			Fields:  map[string]any{"format": "json"},
		}))
	case "generate-stream":
		err := ai_client.GenerateStream(text, take, options...)
		return pieces, err
	case "chat":
		return one(ai_client.Chat(messages, options...))
	case "chat-stream":
		err := ai_client.ChatStream(messages, take, options...)
		return pieces, err
	case "stop":
		err := ai_client.GenerateStream(text, func(piece string) error {
			pieces = append(pieces, piece)
			return errEnough
		})
		if err == errEnough {
			err = nil
		}
		return pieces, err
	case "embed":
		vector, err := ai_client.Embed(text)
		return []string{joined(vector)}, err
	case "embed-both":
		vectors, err := ai_client.EmbedAll([]string{text, "다른"})
		var parts []string
		for _, vector := range vectors {
			parts = append(parts, joined(vector))
		}
		return []string{strings.Join(parts, ";")}, err
	}
	log.Fatal(name)
	return nil, nil
}

func one(text string, err error) ([]string, error) { return []string{text}, err }

func joined(vector []float64) string {
	var numbers []string
	for _, number := range vector {
		numbers = append(numbers, strconv.FormatFloat(number, 'g', -1, 64))
	}
	return strings.Join(numbers, ",")
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		words := strings.Split(lines.Text(), " ")
		text, err := hex.DecodeString(words[2])
		if err != nil {
			log.Fatal(err)
		}
		os.Setenv("AI_ENDPOINT", words[0])
		pieces, err := call(words[1], string(text))
		var told *ai_client.Error
		switch {
		case err == nil:
			for index, piece := range pieces {
				pieces[index] = hex.EncodeToString([]byte(piece))
			}
			fmt.Println("ok", strings.Join(pieces, ","))
		case errors.As(err, &told):
			fmt.Println("error", told.Status, hex.EncodeToString([]byte(told.Error())))
		default:
			log.Fatal(err)
		}
	}
}
