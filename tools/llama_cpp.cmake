# Read by CMake when llama-cpp-python is built. Its own CMakeLists.txt asks for llama.cpp's command-line helpers, which
# nobody calls from Python and which take longer to compile than all the rest. A normal variable wins over its cached one.
set(LLAMA_BUILD_COMMON OFF)
