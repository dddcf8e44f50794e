#include <cctype>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "event.hpp"

struct Value {
    enum Kind { Null, Number, Text, List, Object } kind = Null;
    double number = 0;
    std::string text;
    std::vector<Value> list;
    std::map<std::string, Value> object;
};

class Parser {
public:
    explicit Parser(const std::string &text) : text_(text) {}

    Value value()
    {
        char first = next();
        if (first == '{')
            return object();
        if (first == '[')
            return list();
        Value result;
        if (first == '"') {
            result.kind = Value::Text;
            result.text = string();
        } else if (first == 'n') {
            at_ += 4;
        } else {
            size_t used = 0;
            result.kind = Value::Number;
            result.number = std::stod(text_.substr(at_, 32), &used);
            at_ += used;
        }
        return result;
    }

private:
    char next()
    {
        while (std::isspace(static_cast<unsigned char>(text_.at(at_))))
            at_++;
        return text_[at_];
    }

    std::string string()
    {
        std::string result;
        for (at_++; text_.at(at_) != '"'; at_++)
            result += text_[at_] == '\\' ? text_.at(++at_) : text_[at_];
        at_++;
        return result;
    }

    Value list()
    {
        Value result;
        result.kind = Value::List;
        for (at_++; next() != ']'; at_ += next() == ',')
            result.list.push_back(value());
        at_++;
        return result;
    }

    Value object()
    {
        Value result;
        result.kind = Value::Object;
        for (at_++; next() != '}'; at_ += next() == ',') {
            next();
            std::string key = string();
            if (next() != ':')
                throw std::runtime_error("no colon");
            at_++;
            result.object.emplace(key, value());
        }
        at_++;
        return result;
    }

    const std::string &text_;
    size_t at_ = 0;
};

static double sum(const Value &value)
{
    double result = value.number;
    for (auto &item : value.list)
        result += sum(item);
    for (auto &[key, item] : value.object)
        result += sum(item);
    return result;
}

int main()
{
    long rows = number(read_event(), "rows");
    std::ostringstream text;
    text << "{\"rows\": [";
    for (long at = 0; at < rows; at++)
        text << (at ? ", " : "") << "{\"id\": " << at << ", \"name\": \"row \\\"" << at
             << "\\\"\", \"values\": [" << at % 7 << ", " << at * 0.25 << ", null]}";
    text << "]}";
    std::string document = text.str();
    Value parsed = Parser(document).value();
    const Value &list = parsed.object.at("rows");
    std::cout << document.size() << ' ' << list.list.size() << ' ' << list.list.at(3).object.at("name").text << '\n';
    std::cout << std::fixed << sum(parsed) << '\n';
}
