// The parts of <regex> and <format> that almost every program with these headers instantiates, and whose
// optimisation takes seconds. The precompiled headers declare them, and instances.cpp compiles them once, with
// the same flags. The declarations add no name, and the functions are those of the same headers. So a program
// means the same, whether it uses this copy or its own.
//
// A program may not do this for templates of the standard library ([namespace.std]). Here it is a part of the
// image's implementation of the library: it depends on the names of one release, and the image's build fails
// if they change.
#ifndef INSTANCE
#define INSTANCE extern template
#endif

#ifdef _GLIBCXX_REGEX
namespace std {
INSTANCE class basic_regex<char>;
namespace __detail {
INSTANCE class _Scanner<char>;
INSTANCE class _Compiler<regex_traits<char>>;
INSTANCE class _NFA<regex_traits<char>>;
INSTANCE class _StateSeq<regex_traits<char>>;
#define INSTANCE_EXECUTOR(iterator, is_depth_first)                                                                  \
    INSTANCE bool _Executor<iterator, allocator<sub_match<iterator>>, regex_traits<char>, is_depth_first>::          \
        _M_main_dispatch(_Match_mode, bool_constant<is_depth_first>);                                                \
    INSTANCE bool _Executor<iterator, allocator<sub_match<iterator>>, regex_traits<char>, is_depth_first>::_M_search();
INSTANCE_EXECUTOR(string::const_iterator, true)
INSTANCE_EXECUTOR(string::const_iterator, false)
INSTANCE_EXECUTOR(const char *, true)
INSTANCE_EXECUTOR(const char *, false)
#undef INSTANCE_EXECUTOR
} // namespace __detail
} // namespace std
#endif

#ifdef _GLIBCXX_FORMAT
namespace std::__format {
INSTANCE class _Formatting_scanner<_Sink_iter<char>, char>;
} // namespace std::__format
#endif

#undef INSTANCE
