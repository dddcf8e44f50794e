// Powers of a matrix, computed concurrently. The program reads the input from standard input.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"sync"
)

type matrix [][]float64

type input struct {
	Matrix matrix `json:"matrix"`
	Powers []int  `json:"powers"`
}

type result struct {
	Power  int     `json:"power"`
	Trace  float64 `json:"trace"`
	Matrix matrix  `json:"matrix"`
}

func (a matrix) times(b matrix) matrix {
	product := make(matrix, len(a))
	for row := range a {
		product[row] = make([]float64, len(b[0]))
		for column := range b[0] {
			for inner := range b {
				product[row][column] += a[row][inner] * b[inner][column]
			}
		}
	}
	return product
}

// power returns a power of the matrix. It uses repeated squaring, which takes log2(exponent) steps.
func (a matrix) power(exponent int) matrix {
	result := make(matrix, len(a))
	for row := range a {
		result[row] = make([]float64, len(a))
		result[row][row] = 1
	}
	for square := a; exponent > 0; exponent, square = exponent/2, square.times(square) {
		if exponent%2 == 1 {
			result = result.times(square)
		}
	}
	return result
}

func (a matrix) trace() (sum float64) {
	for index := range a {
		sum += a[index][index]
	}
	return sum
}

func writeJSON(path string, value any) {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		log.Fatal(err)
	}
}

func main() {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		log.Fatal("invalid input: ", err)
	}

	results := make([]result, len(in.Powers))
	var workers sync.WaitGroup
	for index, exponent := range in.Powers {
		workers.Add(1)
		go func() {
			defer workers.Done()
			power := in.Matrix.power(exponent)
			results[index] = result{exponent, power.trace(), power}
		}()
	}
	workers.Wait()

	// The worker uploads the files in OUTPUT_DIR, also those in subfolders.
	output := os.Getenv("OUTPUT_DIR")
	if err := os.Mkdir(filepath.Join(output, "powers"), 0o755); err != nil {
		log.Fatal(err)
	}
	traces := map[string]float64{}
	for _, result := range results {
		traces[fmt.Sprintf("A^%d", result.Power)] = result.Trace
		writeJSON(filepath.Join(output, "powers", fmt.Sprintf("%d.json", result.Power)), result)
	}
	writeJSON(filepath.Join(output, "report.json"), traces)

	last := results[len(results)-1]
	fmt.Printf("행렬 %d×%d: tr(A^%d) = %.0f\n", len(in.Matrix), len(in.Matrix), last.Power, last.Trace)
}
