// The functions that instances.h declares.
#include <format>
#include <regex>
#include <string>
#define INSTANCE template
#include "instances.h"
