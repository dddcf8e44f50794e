#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "event.hpp"

using Matrix = std::vector<std::vector<double>>;

static Matrix product(const Matrix &left, const Matrix &right)
{
    Matrix result(left.size(), std::vector<double>(right[0].size()));
    for (size_t row = 0; row < left.size(); row++)
        for (size_t inner = 0; inner < right.size(); inner++)
            for (size_t column = 0; column < right[0].size(); column++)
                result[row][column] += left[row][inner] * right[inner][column];
    return result;
}

static std::vector<double> solved(Matrix matrix, std::vector<double> right)
{
    size_t size = right.size();
    for (size_t step = 0; step < size; step++) {
        size_t best = step;
        for (size_t row = step; row < size; row++)
            if (std::abs(matrix[row][step]) > std::abs(matrix[best][step]))
                best = row;
        std::swap(matrix[step], matrix[best]);
        std::swap(right[step], right[best]);
        for (size_t row = step + 1; row < size; row++) {
            double factor = matrix[row][step] / matrix[step][step];
            for (size_t column = step; column < size; column++)
                matrix[row][column] -= factor * matrix[step][column];
            right[row] -= factor * right[step];
        }
    }
    for (size_t row = size; row-- > 0;) {
        for (size_t column = row + 1; column < size; column++)
            right[row] -= matrix[row][column] * right[column];
        right[row] /= matrix[row][row];
    }
    return right;
}

int main()
{
    size_t size = number(read_event(), "size");
    Matrix matrix(size, std::vector<double>(size));
    for (size_t row = 0; row < size; row++)
        for (size_t column = 0; column < size; column++)
            matrix[row][column] = double((row * 7919 + column * 104729) % 101) / 10 + (row == column ? double(size) : 0);
    double trace = 0, sum = 0;
    Matrix squared = product(matrix, matrix);
    for (size_t row = 0; row < size; row++)
        trace += squared[row][row];
    for (double value : solved(matrix, std::vector<double>(size, 1)))
        sum += value;
    std::printf("%zu %.3f %.6f\n", size, trace, sum);
}
