# roundhouse_library(NAME [LIBS lib...] [PRIVATE lib...])
# One target a folder: every .cpp of the folder and its headers; what needs CUDA's compiler or libraries lies in folders
# named cuda and nccl, which are left out without CUDA. Each header compiles by itself: NAME.cpp includes NAME.h before everything else
# (the test `layering` looks), and headers without such a source are compiled alone (target all_verify_interface_header_sets).
function(roundhouse_library name)
  cmake_parse_arguments(arg "" "" "LIBS;PRIVATE" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS *.cpp)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS *.h)
  if(ROUNDHOUSE_CUDA)
    file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS *.cu)
    list(APPEND sources ${cuda_sources})
  else()
    list(FILTER sources EXCLUDE REGEX "/(cuda|nccl)/")
  endif()
  list(FILTER sources EXCLUDE REGEX "/main\\.cpp$")
  set(alone ${headers})
  foreach(source IN LISTS sources)
    cmake_path(REPLACE_EXTENSION source h)
    list(REMOVE_ITEM alone ${source})
  endforeach()
  add_library(roundhouse_${name} STATIC)
  add_library(roundhouse::${name} ALIAS roundhouse_${name})
  target_sources(roundhouse_${name}
    PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${alone}
    PRIVATE ${sources})
  target_link_libraries(roundhouse_${name} PUBLIC roundhouse_options ${arg_LIBS} PRIVATE ${arg_PRIVATE})
endfunction()
