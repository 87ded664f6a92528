# The version lives in one place, the public header; everything else (the shared library's name,
# the CMake package, pkg-config, the Python package) takes it from there.
set(version_header ${CMAKE_CURRENT_LIST_DIR}/../include/stquant/base.h)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${version_header})
file(STRINGS ${version_header} version_lines REGEX "^#define STQ_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+")
set(STQUANT_VERSION)
foreach(part MAJOR MINOR PATCH)
  if(NOT version_lines MATCHES "STQ_VERSION_${part} +([0-9]+)")
    message(FATAL_ERROR "include/stquant/base.h does not define STQ_VERSION_${part}")
  endif()
  list(APPEND STQUANT_VERSION ${CMAKE_MATCH_1})
endforeach()
list(JOIN STQUANT_VERSION "." STQUANT_VERSION)
